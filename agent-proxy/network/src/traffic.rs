//! Filters on the frames that arrive at a device: redirects to another device, and guards in front of them.
//!
//! Ours have fixed priorities, so filters of others on the same device are left alone. Adding is idempotent: what is
//! there is read back and compared, and replaced in place if it differs.

use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType,
    TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};
use nix::errno::Errno;

use crate::bpf::Program;
use crate::error::NetworkError;
use crate::link::Link;
use crate::netlink::{Mode, Netlink, is, refused};

/// The place of a filter among those of its device; lower ones are asked first. Each is used once per device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Priority {
    /// What the pod must not send, or who may not send VXLAN.
    Guard = 0x5050,
    /// Who may not reach the channel of node and VM.
    ChannelGuard = 0x5051,
    /// Everything else, to the other device.
    Redirect = 0x5052,
}

/// The handle of the one cls_bpf program of its priority.
const PROGRAM_HANDLE: u32 = 1;

/// ETH_P_ALL.
const ALL_PROTOCOLS: u16 = 0x0003;

/// TCA_BPF_OPS_LEN and TCA_BPF_OPS, which carry classic BPF.
const BPF_OPS_LEN: u16 = 4;
const BPF_OPS: u16 = 5;

impl Netlink {
    /// Sends every frame that arrives at `from` out of `to`.
    pub(crate) async fn ensure_redirect(&self, from: &Link, to: &Link) -> Result<(), NetworkError> {
        self.ensure_ingress(from).await?;
        let present = self.filters(from, Priority::Redirect).await?;
        if present.iter().any(|filter| redirects_to(filter) == Some(to.index)) {
            return Ok(());
        }
        // An old one, to a device that is gone, is changed in place: frames never find no filter at all.
        let (handle, mode) = match present.iter().find(|filter| redirects_to(filter).is_some()) {
            Some(old) => (old.header.handle, Mode::Replace),
            None => (TcHandle::UNSPEC, Mode::Create),
        };
        let mut message = filter_message(from, Priority::Redirect);
        message.header.handle = handle;
        message.attributes = vec![TcAttribute::Kind(TcFilterU32::KIND.to_owned()), TcAttribute::Options(redirect_options(to.index))];
        let sent = self.change(RouteNetlinkMessage::NewTrafficFilter(message), mode).await;
        sent.map_err(refused("redirect", format!("{} to {}", from.name, to.name)))
    }

    /// Lets `program` judge the frames that arrive at `link`.
    pub(crate) async fn ensure_guard(&self, link: &Link, priority: Priority, program: &Program) -> Result<(), NetworkError> {
        self.ensure_ingress(link).await?;
        let present = self.filters(link, priority).await?;
        if present.iter().any(|filter| runs(filter, program)) {
            return Ok(());
        }
        let mut message = filter_message(link, priority);
        message.header.handle = TcHandle::from(PROGRAM_HANDLE);
        let options = vec![
            TcOption::Bpf(TcFilterBpfOption::Other(DefaultNla::new(BPF_OPS_LEN, program.len().to_ne_bytes().to_vec()))),
            TcOption::Bpf(TcFilterBpfOption::Other(DefaultNla::new(BPF_OPS, program.as_bytes().to_vec()))),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ];
        message.attributes = vec![TcAttribute::Kind(TcFilterBpf::KIND.to_owned()), TcAttribute::Options(options)];
        let sent = self.change(RouteNetlinkMessage::NewTrafficFilter(message), Mode::Replace).await;
        sent.map_err(refused("guard", &link.name))
    }

    /// Takes our redirect off `link`, and the queueing discipline under it if that has no other filter.
    pub(crate) async fn remove_redirect(&self, link: &Link) -> Result<(), NetworkError> {
        let (ours, others): (Vec<_>, Vec<_>) =
            self.all_filters(link).await?.into_iter().partition(|filter| priority_of(filter) == Priority::Redirect as u16);
        if !ours.is_empty() {
            let message = filter_message(link, Priority::Redirect);
            match self.change(RouteNetlinkMessage::DelTrafficFilter(message), Mode::Existing).await {
                Err(error) if !is_gone(&error) => return Err(refused("remove redirect from", &link.name)(error)),
                _ => {}
            }
        }
        if ours.is_empty() || !others.is_empty() {
            return Ok(());
        }
        match self.change(RouteNetlinkMessage::DelQueueDiscipline(ingress_message(link)), Mode::Existing).await {
            Err(error) if !is_gone(&error) => Err(refused("remove ingress discipline from", &link.name)(error)),
            _ => Ok(()),
        }
    }

    async fn ensure_ingress(&self, link: &Link) -> Result<(), NetworkError> {
        match self.change(RouteNetlinkMessage::NewQueueDiscipline(ingress_message(link)), Mode::Create).await {
            // There already: ours, another's, or a clsact, whose ingress side takes the same filters.
            Err(error) if !is(&error, Errno::EEXIST) => Err(refused("add ingress discipline to", &link.name)(error)),
            _ => Ok(()),
        }
    }

    async fn filters(&self, link: &Link, priority: Priority) -> Result<Vec<TcMessage>, NetworkError> {
        let all = self.all_filters(link).await?;
        Ok(all.into_iter().filter(|filter| priority_of(filter) == priority as u16).collect())
    }

    async fn all_filters(&self, link: &Link) -> Result<Vec<TcMessage>, NetworkError> {
        let mut message = TcMessage::default();
        message.header.index = index_of(link);
        message.header.parent = INGRESS_SIDE;
        let answers = match self.dump(RouteNetlinkMessage::GetTrafficFilter(message)).await {
            Err(error) if is_gone(&error) => Vec::new(),
            answers => answers.map_err(refused("list filters of", &link.name))?,
        };
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewTrafficFilter(filter) => Some(filter),
                _ => None,
            })
            .collect())
    }
}

/// The ingress side of an ingress or clsact discipline, where filters hang.
const INGRESS_SIDE: TcHandle = TcHandle { major: u16::MAX, minor: TcHandle::MIN_INGRESS };

fn ingress_message(link: &Link) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = index_of(link);
    message.header.parent = TcHandle::INGRESS;
    message.header.handle = TcHandle { major: u16::MAX, minor: 0 };
    message.attributes.push(TcAttribute::Kind("ingress".to_owned()));
    message
}

fn filter_message(link: &Link, priority: Priority) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = index_of(link);
    message.header.parent = INGRESS_SIDE;
    message.header.info = u32::from(priority as u16) << 16 | u32::from(ALL_PROTOCOLS.to_be());
    message
}

/// `match u32 0 0 action mirred egress redirect`: every frame.
fn redirect_options(to: u32) -> Vec<TcOption> {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let mut mirror = TcMirror::default();
    mirror.generic = TcActionGeneric::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    vec![TcOption::U32(TcFilterU32Option::Selector(selector)), TcOption::U32(TcFilterU32Option::Action(vec![action]))]
}

/// The device to which a filter redirects: 0 if that is gone, `None` for filters that do something else.
fn redirects_to(filter: &TcMessage) -> Option<u32> {
    let actions = options(filter).find_map(|option| match option {
        TcOption::U32(TcFilterU32Option::Action(actions)) => Some(actions),
        _ => None,
    })?;
    let attributes = actions.iter().flat_map(|action| &action.attributes);
    attributes
        .filter_map(|attribute| match attribute {
            TcActionAttribute::Options(options) => Some(options),
            _ => None,
        })
        .flatten()
        .find_map(|option| match option {
            TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror)) => Some(mirror.ifindex),
            _ => None,
        })
}

fn runs(filter: &TcMessage, program: &Program) -> bool {
    options(filter).any(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::Other(attribute)) if attribute.kind() == BPF_OPS => {
            let mut bytes = vec![0; attribute.value_len()];
            attribute.emit_value(&mut bytes);
            bytes == program.as_bytes()
        }
        _ => false,
    })
}

fn options(filter: &TcMessage) -> impl Iterator<Item = &TcOption> {
    filter
        .attributes
        .iter()
        .filter_map(|attribute| if let TcAttribute::Options(options) = attribute { Some(options) } else { None })
        .flatten()
}

fn priority_of(filter: &TcMessage) -> u16 {
    TcHandle::from(filter.header.info).major
}

/// The header's field is signed; the kernel's indices are positive.
fn index_of(link: &Link) -> i32 {
    i32::try_from(link.index).unwrap_or(i32::MAX)
}

/// The device, its discipline or the filter is gone.
fn is_gone(error: &std::io::Error) -> bool {
    [Errno::ENOENT, Errno::ENODEV, Errno::EINVAL].into_iter().any(|number| is(error, number))
}
