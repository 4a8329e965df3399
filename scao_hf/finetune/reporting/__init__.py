"""What every report shares: the look of figures, and one page that needs nothing but a browser."""
