//! The one method of the xDS service as HTTP carries it: gRPC messages with their five bytes in front, the status in
//! the trailers. Written out because tonic's own encoder keeps the buffer of the largest message for as long as the
//! stream lives, which for every node is a copy of everything. Here a message's bytes go when they are sent.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::Stream;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::body::{Body, Frame};
use prost::Message as _;
use tonic::codec::Codec as _;
use tonic::codegen::{BoxFuture, StdError};
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::{Request, Status, Streaming};

use crate::proto::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use crate::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

const PATH: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// A node's first request lists everything it holds.
const MAX_REQUEST_BYTES: usize = 64 << 20;

/// Serves the method; for [`tonic::service::Routes`].
#[derive(Debug)]
pub struct Method<T>(Arc<T>);

impl<T> Method<T> {
    /// The method as `service` carries it out.
    pub fn new(service: T) -> Self {
        Self(Arc::new(service))
    }
}

impl<T> Clone for Method<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> NamedService for Method<T> {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl<T, B> tower::Service<http::Request<B>> for Method<T>
where
    T: AggregatedDiscoveryService,
    T::DeltaAggregatedResourcesStream: Unpin,
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let service = Arc::clone(&self.0);
        Box::pin(async move { Ok(answer(&*service, request).await.unwrap_or_else(|status| status.into_http())) })
    }
}

async fn answer<T, B>(service: &T, request: http::Request<B>) -> Result<http::Response<tonic::body::Body>, Status>
where
    T: AggregatedDiscoveryService,
    T::DeltaAggregatedResourcesStream: Unpin,
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    if request.uri().path() != PATH {
        return Err(Status::unimplemented("only DeltaAggregatedResources is served"));
    }
    let (head, body) = request.into_parts();
    let decoder = tonic_prost::ProstCodec::<DeltaDiscoveryResponse, DeltaDiscoveryRequest>::default().decoder();
    let requests = Streaming::new_request(decoder, body, None, Some(MAX_REQUEST_BYTES));
    let request = Request::from_parts(MetadataMap::from_headers(head.headers), head.extensions, requests);
    let responses = service.delta_aggregated_resources(request).await?.into_inner();
    let mut response = http::Response::new(tonic::body::Body::new(Frames { responses, ended: false }));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}

/// Responses as frames of a body.
struct Frames<S> {
    responses: S,
    ended: bool,
}

impl<S> Body for Frames<S>
where
    S: Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = ready!(Pin::new(&mut self.responses).poll_next(context));
        let end = match next.unwrap_or_else(|| Err(Status::ok(""))).and_then(|response| framed(&response)) {
            Ok(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Err(status) => status,
        };
        self.ended = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(end.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// Not compressed, the length, the message.
fn framed(response: &DeltaDiscoveryResponse) -> Result<Bytes, Status> {
    let length = response.encoded_len();
    let mut bytes = BytesMut::with_capacity(length + 5);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).map_err(|_| Status::out_of_range("a response of more than 4 GiB"))?);
    response.encode(&mut bytes).map_err(|error| Status::internal(error.to_string()))?;
    Ok(bytes.freeze())
}
