"""What a model's answer is made of: reasoning, text and calls of tools, in the form that its chat template shows."""
