"""What is late or needs a person, and who hears of it: e-mail and webhook."""
