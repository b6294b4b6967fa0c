//! Every rpc of the data service, over a socket.

mod support;

use basalt_blockstore::ErrorKind;
use basalt_proto::v1;
use support::{Served, block, get, kind, put};
use tonic::Code;

#[tokio::test]
async fn what_was_put_is_got_and_what_was_deleted_is_not() {
    let served = Served::start("");
    let mut data = served.data().await;
    let (_, block) = block(b"a block");
    for key in [block.as_str(), "/pins/state/dirty"] {
        data.put(put(key, b"a block")).await.unwrap();
        assert_eq!(data.get(get(key)).await.unwrap().into_inner().value, "a block".as_bytes());
        assert_eq!(data.get_size(v1::GetSizeRequest { key: key.into() }).await.unwrap().into_inner().size, 7);
        assert!(data.has(v1::HasRequest { key: key.into() }).await.unwrap().into_inner().exists);
        data.delete(v1::DeleteRequest { key: key.into() }).await.unwrap();
        let gone = data.get(get(key)).await.unwrap_err();
        assert_eq!((gone.code(), kind(&gone)), (Code::NotFound, ErrorKind::NotFound));
        let gone = data.get_size(v1::GetSizeRequest { key: key.into() }).await.unwrap_err();
        assert_eq!(kind(&gone), ErrorKind::NotFound);
        assert!(!data.has(v1::HasRequest { key: key.into() }).await.unwrap().into_inner().exists);
        data.delete(v1::DeleteRequest { key: key.into() }).await.unwrap();
    }
}
