"""Judgments become metrics, tables, plots and a report page.

Takes a judge and scored records or pairs; gives a result as JSON, with tables and pictures beside it. Users and `cli`
call it.
"""
