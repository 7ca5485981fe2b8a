"""What a run tells its user: a line of progress, a log, TensorBoard, a plot, the speed."""
