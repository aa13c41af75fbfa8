//! What a packet rule is made of: nftables' expressions, which load into registers, look up, compare and act.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::family::{Family, octets};
use crate::netfilter::Messages;

/// A place among the registers. They stand in this order, without gaps: neighbouring ones form one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Register {
    /// A client's address, or whatever is only passing through.
    Client,
    /// A connection's destination.
    Destination,
    /// Its protocol.
    Protocol,
    /// Its port.
    Port,
    /// A number, or an endpoint: its address and its port.
    Endpoint,
    /// The port of the latter.
    EndpointPort,
}

impl Register {
    /// Registers have 32 bits each (`NFT_REG32_00` and on).
    fn number(self, family: Family) -> u32 {
        let address = u32::from(family.width() / 4);
        8 + match self {
            Self::Client => 0,
            Self::Destination => address,
            Self::Protocol => 2 * address,
            Self::Port => 2 * address + 1,
            Self::Endpoint => 2 * address + 2,
            Self::EndpointPort => 3 * address + 2,
        }
    }
}

/// Where nothing else is said, a value passes through here.
const SCRATCH: Register = Register::Client;
/// `NFT_REG_VERDICT`
const VERDICT: u32 = 0;
/// `NFTA_LIST_ELEM`
const ELEMENT: u16 = 1;

/// Fields of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Source,
    Destination,
    /// The last 32 bits of an address: in a pod's IPv6 address, its IPv4 one.
    SourceEnd,
    DestinationEnd,
    /// TCP's, UDP's and SCTP's alike.
    DestinationPort,
    IcmpType,
}

impl Field {
    /// Base (`NFT_PAYLOAD_*`), offset and length.
    fn place(self, family: Family) -> (u32, u32, u32) {
        let width = u32::from(family.width());
        let source = match family {
            Family::V4 => 12,
            Family::V6 => 8,
        };
        match self {
            Self::Source => (1, source, width),
            Self::Destination => (1, source + width, width),
            Self::SourceEnd => (1, source + width - 4, 4),
            Self::DestinationEnd => (1, source + 2 * width - 4, 4),
            Self::DestinationPort => (2, 2, 2),
            Self::IcmpType => (2, 0, 1),
        }
    }
}

/// `NFT_META_*`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meta {
    Protocol = 16,
    InputName = 6,
    OutputName = 7,
}

/// `NFT_CMP_EQ`, `NFT_CMP_NEQ`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Is {
    Equal = 0,
    Other = 1,
}

/// What to do with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Drop,
    Accept,
    Return,
    Jump(String),
    Goto(String),
}

impl Verdict {
    /// Writes the attributes of `NFTA_DATA_VERDICT`.
    pub(crate) fn write(&self, messages: &mut Messages) {
        let (code, chain) = match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Return => (-5, None),
            Self::Jump(chain) => (-3_i32, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
        };
        messages.number(1, code.cast_unsigned());
        if let Some(chain) = chain {
            messages.name(2, chain);
        }
    }
}

/// The expressions of one rule, in order.
pub(crate) struct Rule<'a> {
    pub(crate) messages: &'a mut Messages,
    pub(crate) family: Family,
}

impl Rule<'_> {
    fn expression(self, name: &str, write: impl FnOnce(&mut Messages, Family)) -> Self {
        self.messages.nested(ELEMENT, |inner| {
            inner.name(1, name).nested(2, |inner| write(inner, self.family));
        });
        self
    }

    pub(crate) fn load(self, field: Field, to: Register) -> Self {
        self.expression("payload", |inner, family| {
            let (base, offset, length) = field.place(family);
            inner.number(1, to.number(family)).number(2, base).number(3, offset).number(4, length);
        })
    }

    pub(crate) fn load_meta(self, meta: Meta, to: Register) -> Self {
        self.expression("meta", |inner, family| {
            inner.number(1, to.number(family)).number(2, meta as u32);
        })
    }

    pub(crate) fn load_value(self, value: &[u8], to: Register) -> Self {
        self.expression("immediate", |inner, family| {
            inner.number(1, to.number(family)).nested(2, |data| {
                data.bytes(1, value);
            });
        })
    }

    /// A random number below `modulus`.
    pub(crate) fn load_random(self, modulus: u32, to: Register) -> Self {
        self.expression("numgen", |inner, family| {
            inner.number(1, to.number(family)).number(2, modulus).number(3, 1);
        })
    }

    fn compare(self, is: Is, value: &[u8]) -> Self {
        self.expression("cmp", |inner, family| {
            inner.number(1, SCRATCH.number(family)).number(2, is as u32).nested(3, |data| {
                data.bytes(1, value);
            });
        })
    }

    fn mask(self, mask: &[u8]) -> Self {
        self.expression("bitwise", |inner, family| {
            let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
            inner.number(1, SCRATCH.number(family)).number(2, SCRATCH.number(family)).number(3, length);
            inner.nested(4, |data| {
                data.bytes(1, mask);
            });
            inner.nested(5, |data| {
                data.bytes(1, &vec![0; mask.len()]);
            });
        })
    }

    pub(crate) fn field(self, field: Field, is: Is, value: &[u8]) -> Self {
        self.load(field, SCRATCH).compare(is, value)
    }

    pub(crate) fn network(self, field: Field, is: Is, network: IpNet) -> Self {
        let masked = self.load(field, SCRATCH).mask(&octets(network.netmask()));
        masked.compare(is, &octets(network.network()))
    }

    pub(crate) fn protocol(self, is: Is, protocol: u8) -> Self {
        self.load_meta(Meta::Protocol, SCRATCH).compare(is, &[protocol])
    }

    /// An interface whose name begins so.
    pub(crate) fn interface(self, meta: Meta, is: Is, prefix: &str) -> Self {
        self.load_meta(meta, SCRATCH).compare(is, prefix.as_bytes())
    }

    /// The exact name of an interface.
    pub(crate) fn interface_named(self, meta: Meta, is: Is, name: &str) -> Self {
        let mut padded = [0; libc::IFNAMSIZ];
        padded[..name.len()].copy_from_slice(name.as_bytes());
        self.load_meta(meta, SCRATCH).compare(is, &padded)
    }

    /// Only packets whose destination was translated (`IPS_DST_NAT`).
    pub(crate) fn translated(self) -> Self {
        let loaded = self.expression("ct", |inner, family| {
            inner.number(1, SCRATCH.number(family)).number(2, 2);
        });
        loaded.mask(&0x20_u32.to_ne_bytes()).compare(Is::Other, &[0; 4])
    }

    /// Only packets of connections that were let through before, answers and errors that belong to them.
    pub(crate) fn under_way(self) -> Self {
        let loaded = self.expression("ct", |inner, family| {
            inner.number(1, SCRATCH.number(family)).number(2, 0);
        });
        // NF_CT_STATE_BIT of established and of related
        loaded.mask(&0x6_u32.to_ne_bytes()).compare(Is::Other, &[0; 4])
    }

    /// Only packets that belong to no connection, and begin none.
    pub(crate) fn astray(self) -> Self {
        let loaded = self.expression("ct", |inner, family| {
            inner.number(1, SCRATCH.number(family)).number(2, 0);
        });
        // NF_CT_STATE_INVALID_BIT
        loaded.mask(&0x1_u32.to_ne_bytes()).compare(Is::Other, &[0; 4])
    }

    /// Only packets to an address of this machine (`RTN_LOCAL`).
    pub(crate) fn only_to_this_machine(self) -> Self {
        let loaded = self.expression("fib", |inner, family| {
            inner.number(1, SCRATCH.number(family)).number(2, 3).number(3, 2);
        });
        loaded.compare(Is::Equal, &2_u32.to_ne_bytes())
    }

    /// Only packets whose answer would not leave by the interface they came in by.
    pub(crate) fn only_from_elsewhere(self) -> Self {
        let loaded = self.expression("fib", |inner, family| {
            inner.number(1, SCRATCH.number(family)).number(2, 1).number(3, 1 | 8);
        });
        loaded.compare(Is::Equal, &[0; 4])
    }

    /// Goes on only if the key is in the set.
    pub(crate) fn in_set(self, set: &str, key: Register) -> Self {
        self.expression("lookup", |inner, family| {
            inner.name(1, set).number(2, key.number(family));
        })
    }

    /// Goes on only if the key is not in the set.
    pub(crate) fn not_in_set(self, set: &str, key: Register) -> Self {
        self.expression("lookup", |inner, family| {
            inner.name(1, set).number(2, key.number(family)).number(5, 1);
        })
    }

    /// Loads what the map has for the key, or doesn't go on.
    pub(crate) fn map(self, map: &str, key: Register, to: Register) -> Self {
        self.expression("lookup", |inner, family| {
            inner.name(1, map).number(2, key.number(family)).number(3, to.number(family));
        })
    }

    /// Does what the map says of the key.
    pub(crate) fn verdict_of(self, map: &str, key: Register) -> Self {
        self.expression("lookup", |inner, family| {
            inner.name(1, map).number(2, key.number(family)).number(3, VERDICT);
        })
    }

    /// Writes key and data into a map for so many seconds. What is there under the key stays, and is renewed.
    pub(crate) fn remember(self, map: &str, key: Register, data: Register, seconds: u32) -> Self {
        const UPDATE: u32 = 1;
        let milliseconds = u64::from(seconds) * 1000;
        self.expression("dynset", |inner, family| {
            inner.name(1, map).number(3, UPDATE).number(4, key.number(family)).number(5, data.number(family));
            inner.bytes(6, &milliseconds.to_be_bytes());
        })
    }

    /// Takes a key out of a map.
    pub(crate) fn forget(self, map: &str, key: Register, data: Register) {
        const DELETE: u32 = 2;
        self.expression("dynset", |inner, family| {
            inner.name(1, map).number(3, DELETE).number(4, key.number(family)).number(5, data.number(family));
        });
    }

    pub(crate) fn verdict(self, verdict: &Verdict) {
        self.expression("immediate", |inner, _| {
            inner.number(1, VERDICT).nested(2, |data| {
                data.nested(2, |inner| verdict.write(inner));
            });
        });
    }

    /// Sends the connection to the endpoint that is loaded.
    pub(crate) fn send_to_endpoint(self) {
        self.expression("nat", |inner, family| {
            inner.number(1, 1).number(2, family.number().into());
            inner.number(3, Register::Endpoint.number(family)).number(5, Register::EndpointPort.number(family));
        });
    }

    /// Makes the connection come from this address.
    pub(crate) fn come_from(self, address: IpAddr) {
        self.load_value(&octets(address), SCRATCH).expression("nat", |inner, family| {
            inner.number(1, 0).number(2, family.number().into()).number(3, SCRATCH.number(family));
        });
    }

    /// Makes the connection come from an address of the interface it leaves by.
    pub(crate) fn masquerade(self) {
        self.expression("masq", |_, _| {});
    }

    /// Answers with a reset.
    pub(crate) fn reset(self) {
        self.expression("reject", |inner, _| {
            inner.number(1, 1).bytes(2, &[0]);
        });
    }

    /// Answers that the port is unreachable.
    pub(crate) fn refuse(self) {
        self.expression("reject", |inner, family| {
            // ICMP_PORT_UNREACH, ICMPV6_PORT_UNREACH
            let code = match family {
                Family::V4 => 3,
                Family::V6 => 4,
            };
            inner.number(1, 0).bytes(2, &[code]);
        });
    }
}
