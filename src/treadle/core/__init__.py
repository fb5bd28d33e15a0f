"""The loop: facts, the state they come to, the next step, and the code that takes it."""
