from dcp_azure import AzureStorageReader, AzureStorageWriter
from dcp_core import CloudStorageReader, CloudStorageWriter
from dcp_gcs import GCSStorageReader, GCSStorageWriter
from dcp_http import HTTPStorageReader
from dcp_s3 import S3StorageReader, S3StorageWriter

writer: CloudStorageWriter = S3StorageWriter(
    "s3://bucket/run", sse="aws:kms", part_size=1 << 25, overwrite=False, requester_pays=True
)
reader: CloudStorageReader = S3StorageReader(
    "s3://bucket/run", region="eu-west-1", concurrency=4, verify_checksums=True
)
writer = GCSStorageWriter("gs://bucket/run", storage_class="NEARLINE", part_size=1 << 25, overwrite=False)
reader = GCSStorageReader("gs://bucket/run", user_project="billed", concurrency=4, verify_checksums=True)
writer = AzureStorageWriter("az://container/run", account="mine", access_tier="Cool", part_size=1 << 25)
reader = AzureStorageReader(
    "abfss://container@mine.dfs.core.windows.net/run", anonymous=True, verify_checksums=True
)
web: CloudStorageReader = HTTPStorageReader(
    "https://host/run", headers={"X-Key": "1"}, token="t", max_redirects=0, verify_checksums=True
)
url: str = writer.checkpoint_id
