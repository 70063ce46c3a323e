"""An OpenAI-compatible API: what is asked (orders), of whom (menu), together with whom (batches)."""
