"""Put runs side by side: what differs between them, how they learned, how good they are, what they answer.

In: run folders, or experiment folders that hold several. Out: one offline HTML page, a picture, plain values.
collect.py reads the runs; report.py makes the page. No model is loaded unless images of one's own are to be answered.
Usage: `write_report(collect(["runs/modules"]), Path("report.html"))`
"""
