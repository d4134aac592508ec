"""The one offline page that every report uses, and the theme of its charts.

In: sections and charts. Out: one HTML file that needs no network.
Usage: `page = Page("first run"); page.chart(chart, "Loss"); page.write(Path("report.html"))`
"""
