"""What is known about a recipe before it runs: bounds of the 0-1 error, and lints that cite papers and laws."""
