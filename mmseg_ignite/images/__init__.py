"""Reading images strictly: damaged files are refused, and nothing that changes the picture passes unnoticed."""
