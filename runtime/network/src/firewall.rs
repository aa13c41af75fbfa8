//! Packet rules, in one nftables table per instance: masquerade on the way out, and the way to the API server.

use std::io;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use netlink_bindings::nftables::{
    self, CmpOps, MetaKeys, Nfgenmsg, PayloadBase, PushExprListAttrs, PushRuleAttrs, Registers,
};
use netlink_bindings::utils::RequestBuf;
use netlink_socket2::NetlinkSocket;

use crate::{Error, NetworkConfig, bridge};

/// `NF_INET_*` hooks and the priorities that nft calls by name (linux/netfilter.h, linux/netfilter_ipv4.h).
const PREROUTING: (u32, i32) = (0, -100);
const POSTROUTING: (u32, i32) = (4, 100);
/// `NFT_NAT_DNAT` (linux/netfilter/nf_tables.h).
const NAT_DESTINATION: u32 = 1;
/// `AF_INET` and `IPPROTO_TCP` in the width that netfilter wants.
const IPV4: u8 = 2;
const TCP: u8 = 6;
/// Offsets in the IPv4 and the TCP header.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
const DESTINATION_PORT: u32 = 2;

fn table(instance: &str) -> String {
    format!("carob-{instance}")
}

/// Puts an instance's table in place, replacing an earlier one, in one transaction.
pub(crate) fn install(config: &NetworkConfig) -> Result<(), Error> {
    let name = table(&config.instance);
    let mut rules = Transaction::begin(&name);
    rules.replace_table();
    rules.base_chain("postrouting", POSTROUTING);
    rules.rule("postrouting", |rule| {
        masquerade(within(not_within(rule, DESTINATION, config.pod_cidr), SOURCE, config.pod_cidr))
    });
    if let Some(api) = config.api_service {
        rules.base_chain("prerouting", PREROUTING);
        let bridge = bridge::name(&config.instance);
        rules.rule("prerouting", |rule| {
            let rule = from_interface(rule, &bridge);
            let rule = payload_is(rule, DESTINATION, api.service.ip().octets());
            let rule = tcp_to_port(rule, api.service.port());
            send_to(rule, *api.target.ip(), api.target.port())
        });
    }
    rules.commit().map_err(Error::kernel(format!("install nftables table {name}")))
}

/// Removes an instance's table, if it is there.
pub(crate) fn remove(instance: &str) -> Result<(), Error> {
    let name = table(instance);
    let mut rules = Transaction::begin(&name);
    rules.remove_table();
    rules.commit().map_err(Error::kernel(format!("remove nftables table {name}")))
}

/// Whether masquerading works here; tried in a namespace of its own.
pub(crate) fn probe() -> Result<(), Error> {
    crate::namespace::in_new_namespace(|| {
        install(&NetworkConfig {
            instance: "probe000".into(),
            pod_cidr: Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 0), 24),
            pool: 0,
            api_service: None,
        })
    })
}

/// A batch that takes effect whole or not at all.
struct Transaction<'a> {
    table: &'a str,
    socket: NetlinkSocket,
    batch: nftables::Chained<'static>,
}

impl<'a> Transaction<'a> {
    fn begin(table: &'a str) -> Self {
        let mut socket = NetlinkSocket::new();
        let mut batch = nftables::Chained::new(socket.reserve_seq(64));
        batch.request().op_batch_begin_do(&batch_header());
        Self { table, socket, batch }
    }

    /// "Create" before "delete" makes the delete succeed whether or not the table was there.
    fn remove_table(&mut self) {
        self.batch
            .request()
            .set_create()
            .op_newtable_do(&ipv4_header())
            .encode()
            .push_name_bytes(self.table.as_bytes());
        self.batch.request().op_deltable_do(&ipv4_header()).encode().push_name_bytes(self.table.as_bytes());
    }

    fn replace_table(&mut self) {
        self.remove_table();
        self.batch
            .request()
            .set_create()
            .op_newtable_do(&ipv4_header())
            .encode()
            .push_name_bytes(self.table.as_bytes());
    }

    fn base_chain(&mut self, name: &str, (hook, priority): (u32, i32)) {
        self.batch
            .request()
            .set_create()
            .op_newchain_do(&ipv4_header())
            .encode()
            .push_table_bytes(self.table.as_bytes())
            .push_name_bytes(name.as_bytes())
            .nested_hook()
            .push_num(hook)
            .push_priority(priority)
            .end_nested()
            .push_type_bytes(b"nat");
    }

    fn rule(&mut self, chain: &str, write: impl FnOnce(Rule<'_>) -> Rule<'_>) {
        let rule = self
            .batch
            .request()
            .set_create()
            .set_append()
            .op_newrule_do(&ipv4_header())
            .into_encoder()
            .push_table_bytes(self.table.as_bytes())
            .push_chain_bytes(chain.as_bytes())
            .nested_expressions();
        write(rule).end_nested();
    }

    fn commit(mut self) -> io::Result<()> {
        self.batch.request().op_batch_end_do(&batch_header());
        let batch = self.batch.finalize();
        self.socket
            .request_chained(&batch)?
            .recv_all()
            .map_err(|error| io::Error::from_raw_os_error(error.as_io_error().raw_os_error().unwrap_or(libc::EIO)))
    }
}

fn batch_header() -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    // NFNL_SUBSYS_NFTABLES
    header.set_res_id(10);
    header
}

fn ipv4_header() -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = IPV4;
    header
}

type Rule<'a> = PushExprListAttrs<PushRuleAttrs<RequestBuf<'a>>>;

fn load_payload(rule: Rule<'_>, base: PayloadBase, offset: u32, len: u32) -> Rule<'_> {
    rule.nested_elem()
        .nested_data_payload()
        .push_dreg(Registers::Reg1 as u32)
        .push_base(base as u32)
        .push_offset(offset)
        .push_len(len)
        .end_nested()
        .end_nested()
}

fn compare<'a>(rule: Rule<'a>, operation: CmpOps, value: &[u8]) -> Rule<'a> {
    rule.nested_elem()
        .nested_data_cmp()
        .push_sreg(Registers::Reg1 as u32)
        .push_op(operation as u32)
        .nested_data()
        .push_value(value)
        .end_nested()
        .end_nested()
        .end_nested()
}

fn payload_is(rule: Rule<'_>, offset: u32, value: [u8; 4]) -> Rule<'_> {
    compare(load_payload(rule, PayloadBase::NetworkHeader, offset, 4), CmpOps::Eq, &value)
}

fn in_network(rule: Rule<'_>, offset: u32, network: Ipv4Net, operation: CmpOps) -> Rule<'_> {
    let rule = load_payload(rule, PayloadBase::NetworkHeader, offset, 4)
        .nested_elem()
        .nested_data_bitwise()
        .push_sreg(Registers::Reg1 as u32)
        .push_dreg(Registers::Reg1 as u32)
        .push_len(4)
        .nested_mask()
        .push_value(&network.netmask().octets())
        .end_nested()
        .nested_xor()
        .push_value(&[0; 4])
        .end_nested()
        .end_nested()
        .end_nested();
    compare(rule, operation, &network.network().octets())
}

fn within(rule: Rule<'_>, offset: u32, network: Ipv4Net) -> Rule<'_> {
    in_network(rule, offset, network, CmpOps::Eq)
}

fn not_within(rule: Rule<'_>, offset: u32, network: Ipv4Net) -> Rule<'_> {
    in_network(rule, offset, network, CmpOps::Neq)
}

fn load_meta(rule: Rule<'_>, key: MetaKeys) -> Rule<'_> {
    rule.nested_elem()
        .nested_data_meta()
        .push_key(key as u32)
        .push_dreg(Registers::Reg1 as u32)
        .end_nested()
        .end_nested()
}

fn from_interface<'a>(rule: Rule<'a>, name: &str) -> Rule<'a> {
    let mut padded = [0; libc::IFNAMSIZ];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    compare(load_meta(rule, MetaKeys::Iifname), CmpOps::Eq, &padded)
}

fn tcp_to_port(rule: Rule<'_>, port: u16) -> Rule<'_> {
    let rule = compare(load_meta(rule, MetaKeys::L4Proto), CmpOps::Eq, &[TCP]);
    let rule = load_payload(rule, PayloadBase::TransportHeader, DESTINATION_PORT, 2);
    compare(rule, CmpOps::Eq, &port.to_be_bytes())
}

fn immediate<'a>(rule: Rule<'a>, register: Registers, value: &[u8]) -> Rule<'a> {
    rule.nested_elem()
        .nested_data_immediate()
        .push_dreg(register as u32)
        .nested_data()
        .push_value(value)
        .end_nested()
        .end_nested()
        .end_nested()
}

fn send_to(rule: Rule<'_>, address: Ipv4Addr, port: u16) -> Rule<'_> {
    let rule = immediate(rule, Registers::Reg1, &address.octets());
    immediate(rule, Registers::Reg2, &port.to_be_bytes())
        .nested_elem()
        .nested_data_nat()
        .push_type(NAT_DESTINATION)
        .push_family(IPV4.into())
        .push_reg_addr_min(Registers::Reg1 as u32)
        .push_reg_proto_min(Registers::Reg2 as u32)
        .end_nested()
        .end_nested()
}

fn masquerade(rule: Rule<'_>) -> Rule<'_> {
    rule.nested_elem().push_name_bytes(b"masq").end_nested()
}
