"""What every folder uses: random numbers, files, arguments, pictures."""
