"""What the latency prediction rests on: its fit, its accuracy, and the strategies it chooses."""
