//! How often a cloud lets one account call it.

/// A token bucket: full at first, and filled again at a steady rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Tokens that it holds; at least 1.
    pub burst: u32,
    /// Tokens that come back in a second; at least 1.
    pub per_second: u32,
}

/// What a provider's account may call; `None` means as often as one likes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Calls of [`launch`](crate::CloudProvider::launch).
    pub launches: Option<Rate>,
    /// Instances that launches ask for.
    pub instances: Option<Rate>,
    /// Calls of [`get`](crate::CloudProvider::get), [`list`](crate::CloudProvider::list) and
    /// [`instance_types`](crate::CloudProvider::instance_types).
    pub reads: Option<Rate>,
    /// Calls of [`delete`](crate::CloudProvider::delete).
    pub deletes: Option<Rate>,
}

impl Limits {
    /// Amazon EC2, for each account and region, unless a higher limit was granted.
    ///
    /// Source: "Request throttling for the Amazon EC2 API" in the EC2 developer guide, tables of request token buckets (RunInstances,
    /// Describe*, TerminateInstances) and of resource token buckets (RunInstances).
    pub const EC2: Self = Self {
        launches: Some(Rate { burst: 5, per_second: 2 }),
        instances: Some(Rate { burst: 1000, per_second: 2 }),
        reads: Some(Rate { burst: 100, per_second: 20 }),
        deletes: Some(Rate { burst: 100, per_second: 5 }),
    };
}
