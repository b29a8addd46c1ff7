// What OHIF is told of this server, and who its user is. Runs before the viewer, which it loads at its end.
'use strict';

window.PUBLIC_URL = '/ohif/';
window.browserImportFunction = moduleId => import(moduleId);

// The panel of MONAI Label would take port 8000 of this host.
document.cookie = `MONAILABEL_SERVER_URL=${escape(location.origin + '/')}; path=/ohif; SameSite=Strict`;

window.config = {
  routerBasename: '/ohif/',
  showStudyList: true,
  extensions: [],
  modes: [],
  showWarningMessageForCrossOrigin: false,
  showCPUFallbackMessage: true,
  showLoadingIndicator: true,
  strictZSpacingForVolumeViewport: true,
  useSharedArrayBuffer: 'FALSE',
  investigationalUseDialog: { option: 'never' },
  defaultDataSourceName: 'dicomweb',
  dataSources: [
    {
      namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
      sourceName: 'dicomweb',
      configuration: {
        friendlyName: 'PACS',
        name: 'PACS',
        qidoRoot: '/proxy/dicom/qido',
        wadoRoot: '/proxy/dicom/wado',
        qidoSupportsIncludeField: true,
        supportsReject: false,
        supportsStow: false,
        dicomUploadEnabled: false,
        imageRendering: 'wadors',
        thumbnailRendering: 'wadors',
        enableStudyLazyLoad: true,
        supportsFuzzyMatching: false,
        supportsWildcard: true,
        bulkDataURI: { enabled: true },
      },
    },
  ],
};

const TOKEN = 'labelrounds-token';
const viewer = document.currentScript.dataset.viewer;
const isOwn = address => new URL(address, location.href).origin === location.origin;

// Each request of the viewer to this server carries the token, also those of panels that know of no login.
function carryToken() {
  const { open, send, setRequestHeader } = XMLHttpRequest.prototype;
  const own = new WeakSet();
  const named = new WeakSet();
  XMLHttpRequest.prototype.open = function (method, address, ...rest) {
    if (isOwn(address)) own.add(this);
    this.addEventListener('load', () => own.has(this) && this.status === 401 && forget());
    return open.call(this, method, address, ...rest);
  };
  XMLHttpRequest.prototype.setRequestHeader = function (name, value) {
    if (name.toLowerCase() === 'authorization') named.add(this);
    return setRequestHeader.call(this, name, value);
  };
  XMLHttpRequest.prototype.send = function (...body) {
    const token = sessionStorage.getItem(TOKEN);
    if (token && own.has(this) && !named.has(this)) setRequestHeader.call(this, 'Authorization', `Bearer ${token}`);
    return send.apply(this, body);
  };
}

function forget() {
  sessionStorage.removeItem(TOKEN);
  location.reload();
}

function loadViewer() {
  const script = document.createElement('script');
  script.src = viewer;
  document.head.append(script);
}

function field(name, label, type, autocomplete) {
  const row = document.createElement('label');
  row.style.cssText = 'display:block;margin:12px 0';
  const input = Object.assign(document.createElement('input'), { name, type, autocomplete, required: true });
  input.style.cssText = 'display:block;width:100%;color:black;padding:6px';
  row.append(label, input);
  return row;
}

function askForLogin() {
  const form = document.createElement('form');
  form.id = 'login';
  form.style.cssText = 'max-width:320px;margin:15vh auto;color:white;font-family:sans-serif';
  const button = Object.assign(document.createElement('button'), { textContent: 'Log in' });
  button.style.cssText = 'padding:6px 16px;background:#3a3f99;color:white';
  const message = Object.assign(document.createElement('p'), { id: 'login-message' });
  form.append(
    field('username', 'User', 'text', 'username'),
    field('password', 'Password or key', 'password', 'current-password'),
    button,
    message
  );
  form.addEventListener('submit', async event => {
    event.preventDefault();
    message.textContent = '';
    const sent = new URLSearchParams(new FormData(form));
    sent.set('grant_type', 'password');
    const answer = await fetch('/auth/token', { method: 'POST', body: sent }).catch(() => null);
    const token = answer && answer.ok && (await answer.json()).access_token;
    if (!token) {
      message.textContent = 'This user and password are not known here.';
      return;
    }
    sessionStorage.setItem(TOKEN, token);
    form.remove();
    loadViewer();
  });
  document.body.style.background = 'black';
  document.body.append(form);
}

async function start() {
  carryToken();
  const answer = await fetch('/auth/').catch(() => null);
  const needed = answer && answer.ok && (await answer.json()).enabled;
  if (needed && !sessionStorage.getItem(TOKEN)) askForLogin();
  else loadViewer();
}

start();
