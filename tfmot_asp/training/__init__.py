"""The doors to a sparse model that trains: policy, wrapper, constraints; TF-ASP's interface in `tf_asp`."""
