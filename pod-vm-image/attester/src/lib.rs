//! Collects evidence inside the pod VM; guest only.
