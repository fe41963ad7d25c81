//! What the mock cloud's region has: types, images, subnets, groups. The names are EC2's; the list is short.

use std::net::Ipv4Addr;

/// The region's name.
pub const REGION: &str = "eu-west-1";
/// Its only network.
pub const VPC: &str = "vpc-00000000000000001";
/// An image that boots with UEFI and has a TPM.
pub const IMAGE: &str = "ami-00000000000000001";
/// An image that boots as computers did before UEFI.
pub const LEGACY_IMAGE: &str = "ami-00000000000000002";
/// A security group of the network.
pub const GROUP: &str = "sg-00000000000000001";
/// A security group of another network.
pub const FOREIGN_GROUP: &str = "sg-000000000000000ff";

/// A size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Type {
    /// EC2's name.
    pub name: &'static str,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory.
    pub memory_mib: u32,
    /// GPUs.
    pub gpus: u32,
    /// `x86_64` or `arm64`.
    pub architecture: &'static str,
    /// Whether SEV-SNP can be turned on.
    pub has_snp: bool,
}

const fn of(name: &'static str, vcpus: u32, memory_mib: u32, has_snp: bool) -> Type {
    Type { name, vcpus, memory_mib, gpus: 0, architecture: "x86_64", has_snp }
}

/// All of them.
pub const TYPES: [Type; 14] = [
    of("t3.micro", 2, 1024, false),
    of("m5.large", 2, 8192, false),
    of("c6a.large", 2, 4096, true),
    of("c6a.xlarge", 4, 8192, true),
    of("m6a.large", 2, 8192, true),
    of("m6a.xlarge", 4, 16_384, true),
    of("m6a.2xlarge", 8, 32_768, true),
    of("m6a.4xlarge", 16, 65_536, true),
    of("m6a.8xlarge", 32, 131_072, true),
    of("r6a.large", 2, 16_384, true),
    of("r6a.xlarge", 4, 32_768, true),
    of("r6a.2xlarge", 8, 65_536, true),
    Type { gpus: 1, ..of("g4dn.xlarge", 4, 16_384, false) },
    Type { architecture: "arm64", ..of("m7g.large", 2, 8192, false) },
];

/// A subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// EC2's id.
    pub id: &'static str,
    /// Its zone.
    pub zone: &'static str,
    /// The network's address; it is a /20.
    pub network: Ipv4Addr,
}

/// How many addresses each has.
pub const SUBNET_ADDRESSES: u32 = 4096;

/// One in each zone.
pub const SUBNETS: [Subnet; 3] = [
    Subnet { id: "subnet-0000000000000000a", zone: "eu-west-1a", network: Ipv4Addr::new(10, 0, 0, 0) },
    Subnet { id: "subnet-0000000000000000b", zone: "eu-west-1b", network: Ipv4Addr::new(10, 0, 16, 0) },
    Subnet { id: "subnet-0000000000000000c", zone: "eu-west-1c", network: Ipv4Addr::new(10, 0, 32, 0) },
];

/// Whether a type is offered in a zone: GPUs are not everywhere.
pub fn is_offered(type_: &Type, zone: &str) -> bool {
    type_.gpus == 0 || zone == "eu-west-1a"
}

/// The type of that name.
pub fn find_type(name: &str) -> Option<&'static Type> {
    TYPES.iter().find(|type_| type_.name == name)
}

/// The subnet of that id.
pub fn find_subnet(id: &str) -> Option<&'static Subnet> {
    SUBNETS.iter().find(|subnet| subnet.id == id)
}
