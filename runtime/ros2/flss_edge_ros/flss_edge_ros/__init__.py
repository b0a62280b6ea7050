"""flss_edge_ros: a ROS 2 lifecycle node around flss_runtime's StreamClassifier."""
