"""What `dev.py bench` measures: a file or a folder for each table.

Each has `add_arguments` and `run`, and its docstring is its help; a table added here needs no line elsewhere. The runs
themselves, and what tables have in common, are in bench/lab.
"""
