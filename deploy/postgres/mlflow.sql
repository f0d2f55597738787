-- Run once, when the volume is new: MLflow keeps its runs in a database of its own.
CREATE DATABASE mlflow;
