"""What a person, or another program, gets to see: results of commands as text or as JSON."""
