"""What a request to the page passes first: host names, whose workspace it is, and the retention of workspaces."""
