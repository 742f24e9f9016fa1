"""The page: its kit, on which the tabs of the studies stand, and its application."""
