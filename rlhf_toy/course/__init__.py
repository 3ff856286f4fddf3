"""What only the course needs: exercises, widgets, studies, commands, and the setup of notebooks."""
