"""The first inference on a new model: does the endpoint serve it?"""
