//! One account's instances and what belongs to them. No front end's words and no clock of its own: times are arguments.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::time::Instant;

use crate::catalog::{IMAGE, SUBNET_ADDRESSES, SUBNETS, Subnet, TYPES, Type};

/// How long a terminated instance is still shown ("Terminate your instance" of the EC2 user guide: "for a short while", about an hour).
const SHOWN_AFTER_ITS_END: Duration = Duration::from_secs(3600);

/// Addresses of a subnet that EC2 keeps for itself: the first four and the last.
const RESERVED: u32 = 5;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Makes it idempotent; `None` makes every call another launch.
    pub token: Option<String>,
    /// Everything that was asked for in one text: a token's second use must be the same.
    pub fingerprint: String,
    /// The size.
    pub instance_type: Type,
    /// Where.
    pub subnet: Subnet,
    /// The image's id.
    pub image: String,
    /// At least so many, or none.
    pub min: u32,
    /// As many as there is room for, up to this.
    pub max: u32,
    /// What the metadata service hands out.
    pub user_data: Vec<u8>,
    /// Whether SEV-SNP is on.
    pub snp: bool,
    /// Whether the metadata service insists on sessions.
    pub sessions_required: bool,
    /// How many hops the metadata service's answers live.
    pub hop_limit: u32,
    /// Whether a public address is given.
    pub public_address: bool,
    /// Whether the instance's end is also the end of its volume and of its interface.
    pub parts_go_too: bool,
    /// Tags of the instance, of its volume and of its interface.
    pub tags: [BTreeMap<String, String>; 3],
    /// Other parameters that are told back as they came.
    pub echo: BTreeMap<String, String>,
}

impl Launch {
    /// A small one that says nothing but its tags.
    pub fn of_somebody(count: u32, tags: BTreeMap<String, String>) -> Self {
        Self {
            token: None,
            fingerprint: String::new(),
            instance_type: TYPES[0],
            subnet: SUBNETS[0],
            image: IMAGE.to_owned(),
            min: count,
            max: count,
            user_data: Vec::new(),
            snp: false,
            sessions_required: false,
            hop_limit: 2,
            public_address: false,
            parts_go_too: true,
            tags: [tags.clone(), tags.clone(), tags],
            echo: BTreeMap::new(),
        }
    }
}

/// Why a launch is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The token was used for something else.
    TokenTaken,
    /// All instances of the token's launch are gone.
    TokenOver,
    /// No room of this type in this zone.
    NoCapacity,
    /// The subnet is full.
    NoAddress,
    /// The quota of virtual processors is used up.
    Quota,
}

/// An instance's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Accepted.
    Pending,
    /// It runs.
    Running,
    /// It is being ended.
    ShuttingDown,
    /// It is gone and still shown.
    Terminated,
}

/// One instance.
#[derive(Debug, Clone)]
pub struct Instance {
    /// EC2's id.
    pub id: String,
    /// The call that made it.
    pub reservation: String,
    /// Its place among the instances of that call.
    pub index: u32,
    /// What was asked for.
    pub launch: std::sync::Arc<Launch>,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its tags, which may be changed later.
    pub tags: BTreeMap<String, String>,
    /// When it was accepted.
    pub created: Instant,
    /// From when it runs; `None` while nobody knows.
    pub running_at: Option<Instant>,
    /// From when it is being ended.
    pub ending_at: Option<Instant>,
    /// From when it is gone; `None` while nobody knows.
    pub gone_at: Option<Instant>,
    /// Counts all instances of the account: names of parts derive from it.
    pub number: u64,
}

impl Instance {
    /// Where it is in its life.
    pub fn state(&self, now: Instant) -> State {
        let is_past = |moment: Option<Instant>| moment.is_some_and(|moment| moment <= now);
        match () {
            () if is_past(self.gone_at) => State::Terminated,
            () if is_past(self.ending_at) => State::ShuttingDown,
            () if is_past(self.running_at) => State::Running,
            () => State::Pending,
        }
    }

    /// The id of its root volume.
    pub fn volume(&self) -> String {
        format!("vol-{:017x}", self.number)
    }

    /// The id of its network interface.
    pub fn interface(&self) -> String {
        format!("eni-{:017x}", self.number)
    }

    /// Whether its volume and interface exist, attached or left behind.
    pub fn has_parts(&self, now: Instant) -> bool {
        !self.launch.parts_go_too || self.state(now) != State::Terminated
    }

    /// A public address, if it was asked for: from the documentation's range (RFC 5737).
    pub fn public_address(&self, now: Instant) -> Option<Ipv4Addr> {
        let has_one = self.launch.public_address && self.state(now) == State::Running;
        has_one.then(|| Ipv4Addr::from(u32::from(Ipv4Addr::new(203, 0, 113, 0)) + u32::try_from(self.number % 256).unwrap_or(0)))
    }
}

/// The account.
#[derive(Debug, Default)]
pub struct Account {
    /// By id.
    instances: BTreeMap<String, Instance>,
    /// Launches by token.
    tokens: HashMap<String, (String, Vec<String>)>,
    /// How many more instances of a type a zone takes; what is not in here is without end.
    capacity: HashMap<(String, String), u32>,
    /// How many virtual processors may run at once.
    vcpu_quota: Option<u32>,
    next: u64,
}

/// What a launch comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// The token's launch, made before.
    Known(Vec<String>),
    /// So many may be made.
    New(u32),
}

impl Account {
    /// Whether a launch may be made, and how much of it. Changes nothing.
    pub fn admit(&self, launch: &Launch, now: Instant) -> Result<Admission, Refusal> {
        if let Some((fingerprint, ids)) = launch.token.as_ref().and_then(|token| self.tokens.get(token)) {
            let is_left = |id: &String| self.instances.get(id).is_some_and(|one| one.state(now) != State::Terminated);
            return match () {
                () if *fingerprint != launch.fingerprint => Err(Refusal::TokenTaken),
                () if !ids.iter().any(is_left) => Err(Refusal::TokenOver),
                () => Ok(Admission::Known(ids.clone())),
            };
        }
        let mut room = launch.max;
        let place = (launch.instance_type.name.to_owned(), launch.subnet.zone.to_owned());
        let mut refusal = Refusal::NoCapacity;
        if let Some(left) = self.capacity.get(&place) {
            room = room.min(*left);
        }
        let free = self.free_addresses(&launch.subnet, now);
        if free < room {
            (room, refusal) = (free, Refusal::NoAddress);
        }
        if let Some(quota) = self.vcpu_quota {
            let left = quota.saturating_sub(self.vcpus(now)) / launch.instance_type.vcpus;
            if left < room {
                (room, refusal) = (left, Refusal::Quota);
            }
        }
        if room < launch.min.max(1) { Err(refusal) } else { Ok(Admission::New(room)) }
    }

    /// Makes instances with these addresses; `None` takes the subnet's own. `running_at` is when they will run, if that is known.
    pub fn create(&mut self, launch: Launch, addresses: &[Option<Ipv4Addr>], now: Instant, running_at: Option<Instant>) -> Vec<String> {
        let launch = std::sync::Arc::new(launch);
        self.next += 1;
        let reservation = format!("r-{:017x}", self.next);
        let mut used: HashSet<Ipv4Addr> = self.instances.values().filter(|one| one.has_parts(now)).map(|one| one.address).collect();
        let mut ids = Vec::new();
        for (index, address) in addresses.iter().enumerate() {
            let number = self.next;
            self.next += 1;
            // Random-looking ids, always the same: nobody may come to rely on their order.
            let id = format!("i-{:017x}", mix(number) >> 4);
            let Some(address) = address.or_else(|| free_address(&launch.subnet, &used)) else { continue };
            used.insert(address);
            let tags = launch.tags[0].clone();
            let (reservation, launch, index) = (reservation.clone(), launch.clone(), u32::try_from(index).unwrap_or(u32::MAX));
            let instance = Instance {
                id: id.clone(),
                reservation,
                index,
                launch,
                address,
                tags,
                created: now,
                running_at,
                ending_at: None,
                gone_at: None,
                number,
            };
            self.instances.insert(id.clone(), instance);
            ids.push(id);
        }
        let place = (launch.instance_type.name.to_owned(), launch.subnet.zone.to_owned());
        if let Some(left) = self.capacity.get_mut(&place) {
            *left = left.saturating_sub(u32::try_from(ids.len()).unwrap_or(u32::MAX));
        }
        if let Some(token) = &launch.token {
            self.tokens.insert(token.clone(), (launch.fingerprint.clone(), ids.clone()));
        }
        ids
    }

    /// Begins an instance's end. `gone_at` is when it will be gone, if that is known. False when it is ending already.
    pub fn terminate(&mut self, id: &str, now: Instant, gone_at: Option<Instant>) -> bool {
        match self.instances.get_mut(id) {
            Some(instance) if instance.ending_at.is_none() => {
                (instance.ending_at, instance.gone_at) = (Some(now), gone_at);
                true
            }
            _ => false,
        }
    }

    /// Changes what only a machine behind can tell.
    pub fn update(&mut self, id: &str, change: impl FnOnce(&mut Instance)) {
        if let Some(instance) = self.instances.get_mut(id) {
            change(instance);
        }
    }

    /// An instance that is still shown.
    pub fn get(&self, id: &str, now: Instant) -> Option<&Instance> {
        self.instances.get(id).filter(|instance| is_shown(instance, now))
    }

    /// All that are still shown, by id.
    pub fn all(&self, now: Instant) -> impl Iterator<Item = &Instance> {
        self.instances.values().filter(move |instance| is_shown(instance, now))
    }

    /// How many addresses a subnet has left.
    pub fn free_addresses(&self, subnet: &Subnet, now: Instant) -> u32 {
        let used = self.instances.values().filter(|one| one.launch.subnet == *subnet && one.has_parts(now)).count();
        (SUBNET_ADDRESSES - RESERVED).saturating_sub(u32::try_from(used).unwrap_or(u32::MAX))
    }

    /// Sets how many more instances of a type a zone takes; `None` is without end.
    pub fn set_capacity(&mut self, instance_type: &str, zone: &str, left: Option<u32>) {
        let place = (instance_type.to_owned(), zone.to_owned());
        match left {
            Some(left) => self.capacity.insert(place, left),
            None => self.capacity.remove(&place),
        };
    }

    /// Sets how many virtual processors may run at once; `None` is without end.
    pub fn set_vcpu_quota(&mut self, quota: Option<u32>) {
        self.vcpu_quota = quota;
    }

    fn vcpus(&self, now: Instant) -> u32 {
        self.instances.values().filter(|one| one.state(now) != State::Terminated).map(|one| one.launch.instance_type.vcpus).sum()
    }
}

/// The lowest address that nobody has.
fn free_address(subnet: &Subnet, used: &HashSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let network = u32::from(subnet.network);
    (4..SUBNET_ADDRESSES - 1).map(|host| Ipv4Addr::from(network + host)).find(|address| !used.contains(address))
}

fn is_shown(instance: &Instance, now: Instant) -> bool {
    instance.gone_at.is_none_or(|gone| now < gone + SHOWN_AFTER_ITS_END)
}

/// A number to one that looks like no other (the finalizer of SplitMix64).
fn mix(number: u64) -> u64 {
    let number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
