"""The functions of users: what they read, what is remembered of them, and for how long."""
