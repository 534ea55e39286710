"""What every script needs: command lines, files, pictures."""
