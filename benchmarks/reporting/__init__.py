"""What is written of the runs that are there: tables, pages, figures. Nothing is trained here."""
