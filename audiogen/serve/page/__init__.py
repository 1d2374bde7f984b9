"""The server's page: Gradio's controls, and a list of sounds that play while they are made."""
