from dcp_core import CloudStorageReader, CloudStorageWriter
from dcp_http import HTTPStorageReader
from dcp_s3 import S3StorageReader, S3StorageWriter

writer: CloudStorageWriter = S3StorageWriter(
    "s3://bucket/run", sse="aws:kms", part_size=1 << 25, overwrite=False, requester_pays=True
)
reader: CloudStorageReader = S3StorageReader("s3://bucket/run", region="eu-west-1", concurrency=4, verify=True)
web: CloudStorageReader = HTTPStorageReader(
    "https://host/run", headers={"X-Key": "1"}, token="t", max_redirects=0, verify=True
)
url: str = writer.checkpoint_id
