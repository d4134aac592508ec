"""Offline pages out of templates, and the look and the files of their charts.

In: values and charts. Out: one HTML file that needs no network; PNG files.
Usage: `write_page(Path("report.html"), "demo.html", title="first run", figure=figure(chart, alt="loss"), ...)`
"""
