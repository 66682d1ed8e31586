//! Attribute numbers of `linux/netfilter/nf_tables.h` and `nfnetlink.h`, by their names there; libc has the other constants.

/// `enum nft_list_attributes`.
pub const NFTA_LIST_ELEM: u16 = 1;

/// `enum nft_table_attributes`.
pub const NFTA_TABLE_NAME: u16 = 1;
/// The same.
pub const NFTA_TABLE_USERDATA: u16 = 6;

/// `enum nft_chain_attributes`.
pub const NFTA_CHAIN_TABLE: u16 = 1;
/// The same.
pub const NFTA_CHAIN_NAME: u16 = 3;
/// The same.
pub const NFTA_CHAIN_HOOK: u16 = 4;
/// The same.
pub const NFTA_CHAIN_POLICY: u16 = 5;
/// The same.
pub const NFTA_CHAIN_TYPE: u16 = 7;
/// `enum nft_hook_attributes`.
pub const NFTA_HOOK_HOOKNUM: u16 = 1;
/// The same.
pub const NFTA_HOOK_PRIORITY: u16 = 2;

/// `enum nft_rule_attributes`.
pub const NFTA_RULE_TABLE: u16 = 1;
/// The same.
pub const NFTA_RULE_CHAIN: u16 = 2;
/// The same.
pub const NFTA_RULE_EXPRESSIONS: u16 = 4;

/// `enum nft_set_attributes`.
pub const NFTA_SET_TABLE: u16 = 1;
/// The same.
pub const NFTA_SET_NAME: u16 = 2;
/// The same.
pub const NFTA_SET_FLAGS: u16 = 3;
/// The same.
pub const NFTA_SET_KEY_TYPE: u16 = 4;
/// The same.
pub const NFTA_SET_KEY_LEN: u16 = 5;
/// The same.
pub const NFTA_SET_DATA_TYPE: u16 = 6;
/// The same.
pub const NFTA_SET_DATA_LEN: u16 = 7;
/// The same.
pub const NFTA_SET_ID: u16 = 10;
/// The same.
pub const NFTA_SET_USERDATA: u16 = 13;

/// `enum nft_set_elem_list_attributes`.
pub const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
/// The same.
pub const NFTA_SET_ELEM_LIST_SET: u16 = 2;
/// The same.
pub const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
/// `enum nft_set_elem_attributes`.
pub const NFTA_SET_ELEM_KEY: u16 = 1;
/// The same.
pub const NFTA_SET_ELEM_DATA: u16 = 2;

/// `enum nft_object_attributes`.
pub const NFTA_OBJ_TABLE: u16 = 1;
/// The same.
pub const NFTA_OBJ_NAME: u16 = 2;
/// The same.
pub const NFTA_OBJ_TYPE: u16 = 3;
/// The same.
pub const NFTA_OBJ_DATA: u16 = 4;
/// `NFT_OBJECT_COUNTER`.
pub const NFT_OBJECT_COUNTER: u32 = 1;
/// `enum nft_counter_attributes`.
pub const NFTA_COUNTER_BYTES: u16 = 1;
/// The same.
pub const NFTA_COUNTER_PACKETS: u16 = 2;

/// `enum nft_expr_attributes`.
pub const NFTA_EXPR_NAME: u16 = 1;
/// The same.
pub const NFTA_EXPR_DATA: u16 = 2;
/// `enum nft_data_attributes`.
pub const NFTA_DATA_VALUE: u16 = 1;
/// The same.
pub const NFTA_DATA_VERDICT: u16 = 2;
/// `enum nft_verdict_attributes`.
pub const NFTA_VERDICT_CODE: u16 = 1;
/// The same.
pub const NFTA_VERDICT_CHAIN: u16 = 2;
/// `enum nft_meta_attributes`: register, then key. `enum nft_ct_attributes` is alike.
pub const NFTA_META_DREG: u16 = 1;
/// The same.
pub const NFTA_META_KEY: u16 = 2;
/// `enum nft_ct_attributes`.
pub const NFTA_CT_DREG: u16 = 1;
/// The same.
pub const NFTA_CT_KEY: u16 = 2;
/// `enum nft_payload_attributes`.
pub const NFTA_PAYLOAD_DREG: u16 = 1;
/// The same.
pub const NFTA_PAYLOAD_BASE: u16 = 2;
/// The same.
pub const NFTA_PAYLOAD_OFFSET: u16 = 3;
/// The same.
pub const NFTA_PAYLOAD_LEN: u16 = 4;
/// `enum nft_cmp_attributes`.
pub const NFTA_CMP_SREG: u16 = 1;
/// The same.
pub const NFTA_CMP_OP: u16 = 2;
/// The same.
pub const NFTA_CMP_DATA: u16 = 3;
/// `enum nft_bitwise_attributes`.
pub const NFTA_BITWISE_SREG: u16 = 1;
/// The same.
pub const NFTA_BITWISE_DREG: u16 = 2;
/// The same.
pub const NFTA_BITWISE_LEN: u16 = 3;
/// The same.
pub const NFTA_BITWISE_MASK: u16 = 4;
/// The same.
pub const NFTA_BITWISE_XOR: u16 = 5;
/// `enum nft_immediate_attributes`.
pub const NFTA_IMMEDIATE_DREG: u16 = 1;
/// The same.
pub const NFTA_IMMEDIATE_DATA: u16 = 2;
/// `enum nft_lookup_attributes`.
pub const NFTA_LOOKUP_SET: u16 = 1;
/// The same.
pub const NFTA_LOOKUP_SREG: u16 = 2;
/// The same.
pub const NFTA_LOOKUP_DREG: u16 = 3;
/// The same.
pub const NFTA_LOOKUP_FLAGS: u16 = 5;
/// `enum nft_objref_attributes`.
pub const NFTA_OBJREF_IMM_TYPE: u16 = 1;
/// The same.
pub const NFTA_OBJREF_IMM_NAME: u16 = 2;
/// `enum nft_limit_attributes`.
pub const NFTA_LIMIT_RATE: u16 = 1;
/// The same.
pub const NFTA_LIMIT_UNIT: u16 = 2;
/// The same.
pub const NFTA_LIMIT_BURST: u16 = 3;
/// The same.
pub const NFTA_LIMIT_TYPE: u16 = 4;
/// The same.
pub const NFTA_LIMIT_FLAGS: u16 = 5;
/// `enum nft_nat_attributes`.
pub const NFTA_NAT_TYPE: u16 = 1;
/// The same.
pub const NFTA_NAT_FAMILY: u16 = 2;
/// The same.
pub const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
/// The same.
pub const NFTA_NAT_REG_PROTO_MIN: u16 = 5;

/// `enum nf_tables_msg_types`: like the `DEL` messages, but without an error when there is nothing to remove (Linux 6.3).
pub const NFT_MSG_DESTROYTABLE: i32 = 26;
/// The same.
pub const NFT_MSG_DESTROYCHAIN: i32 = 27;
/// The same.
pub const NFT_MSG_DESTROYSETELEM: i32 = 30;
/// The same.
pub const NFT_MSG_DESTROYOBJ: i32 = 31;

/// Data types as the `nft` program numbers them (`enum datatypes` of its `datatype.h`); the kernel only keeps them.
pub mod datatypes {
    /// `TYPE_IPADDR`.
    pub const IPADDR: u32 = 7;
    /// `TYPE_INET_PROTOCOL`.
    pub const INET_PROTOCOL: u32 = 12;
    /// `TYPE_INET_SERVICE`.
    pub const INET_SERVICE: u32 = 13;
    /// `TYPE_IFNAME`.
    pub const IFNAME: u32 = 41;
    /// Bits of one type in the number of a concatenation (`TYPE_BITS`).
    pub const BITS: u32 = 6;
}
