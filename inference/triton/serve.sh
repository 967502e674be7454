#!/bin/sh
# SageMaker starts the image with the one argument "serve"; this file has that name there.
exec python3 -m inference.triton.serve
