"""`dreamforge …`"""
