//! Keys and queries as clients of every kind write them, parsed at the edge.

use basalt_datastore::{Compare, Error, ErrorKind, Filter, Key, Order, Query, Result};
use basalt_proto::v1;

/// The key of a call. Empty is refused: it would be the root, and is a client's mistake.
pub fn parse_key(text: &str) -> Result<Key> {
    if text.is_empty() {
        let message = "the key is empty: a key is absolute, as in /blocks/CIQ...";
        return Err(Error::new(ErrorKind::InvalidKey, message));
    }
    Key::new(text)
}

/// The query of a request. A filter or order that is not understood is an error and not left out: the answer would be wrong.
pub fn parse(request: v1::QueryRequest) -> Result<Query> {
    let invalid =
        |what: &str| Error::new(ErrorKind::InvalidValue, format!("the query has {what} that this node does not know"));
    let compare = |op: i32| match v1::Compare::try_from(op) {
        Ok(v1::Compare::Equal) => Ok(Compare::Equal),
        Ok(v1::Compare::NotEqual) => Ok(Compare::NotEqual),
        Ok(v1::Compare::Greater) => Ok(Compare::Greater),
        Ok(v1::Compare::GreaterOrEqual) => Ok(Compare::GreaterOrEqual),
        Ok(v1::Compare::Less) => Ok(Compare::Less),
        Ok(v1::Compare::LessOrEqual) => Ok(Compare::LessOrEqual),
        Ok(v1::Compare::Unspecified) | Err(_) => Err(invalid("a comparison")),
    };
    let filter = |filter: v1::Filter| match filter.filter {
        Some(v1::filter::Filter::KeyCompare(filter)) => Ok(Filter::Key(compare(filter.op)?, filter.key)),
        Some(v1::filter::Filter::ValueCompare(filter)) => Ok(Filter::Value(compare(filter.op)?, filter.value.into())),
        Some(v1::filter::Filter::KeyPrefix(prefix)) => Ok(Filter::KeyPrefix(prefix)),
        None => Err(invalid("a filter")),
    };
    let order = |order: i32| match v1::Order::try_from(order) {
        Ok(v1::Order::ByKey) => Ok(Order::Key),
        Ok(v1::Order::ByKeyDescending) => Ok(Order::KeyDescending),
        Ok(v1::Order::ByValue) => Ok(Order::Value),
        Ok(v1::Order::ByValueDescending) => Ok(Order::ValueDescending),
        Ok(v1::Order::Unspecified) | Err(_) => Err(invalid("an order")),
    };
    Ok(Query {
        prefix: request.prefix,
        filters: request.filters.into_iter().map(filter).collect::<Result<_>>()?,
        orders: request.orders.into_iter().map(order).collect::<Result<_>>()?,
        limit: request.limit,
        offset: request.offset,
        keys_only: request.keys_only,
        returns_sizes: request.returns_sizes,
        after: request.after.as_deref().map(parse_key).transpose()?,
    })
}
