"""What one line learns on tasks that nobody tuned: tasks, runs, report."""
