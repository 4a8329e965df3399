"""What is done with a run that is over: looked at, drawn, listed, tried, evaluated, merged and given away."""
