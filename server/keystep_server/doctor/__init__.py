"""`keystep doctor`: what this machine, a headset and a server lack, and what to do about it."""
