"""Thin ROS 2 nodes round the estimator: the only part of the robot half that imports rclpy."""
