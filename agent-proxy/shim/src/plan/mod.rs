//! From the OCI specification that containerd made to what the agent is asked.
