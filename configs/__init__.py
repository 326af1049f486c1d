"""
Settings: typed structs with their bounds (`settings`), read from a file and the environment.
"""
