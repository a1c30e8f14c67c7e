// No search index: it would run in a worker made from a blob, which the page's policy does not allow.
Redoc.init('api/v1/swagger.json', { disableSearch: true, hideDownloadButton: false, disableGoogleFont: true },
  document.getElementById('redoc'));
