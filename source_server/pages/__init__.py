"""The page server: who reads the pages of the source, who sends them, and in which order."""
