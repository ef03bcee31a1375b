"""An audit's report for reading: sentences, tables, plots, the page. Nothing is measured here."""
