"""The parts that the tabs of the page are made of; they stand below the studies."""
