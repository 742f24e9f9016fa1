"""What the tabs of the page are made of; it stands below the studies."""
