// The drawings are the value of the component: a list of PNG pictures as text, empty where nothing was drawn.
const canvases = [...element.querySelectorAll('canvas')];
const wrong = element.querySelector('.wrong');
let sent = '';
const blank = canvases.map(() => true);

function clear(i) {
  const pen = canvases[i].getContext('2d');
  pen.fillStyle = '#fff'; pen.fillRect(0, 0, 105, 105);
  blank[i] = true;
}
function tell() {
  const value = JSON.stringify(canvases.map((c, i) => blank[i] ? '' : c.toDataURL('image/png')));
  if (value === sent) return;
  sent = value;
  props.value = value;
  trigger('input');
}
function paint(i, image) {
  clear(i);
  const pen = canvases[i].getContext('2d');
  const times = Math.min(105 / image.width, 105 / image.height);
  const width = image.width * times, height = image.height * times;
  pen.drawImage(image, (105 - width) / 2, (105 - height) / 2, width, height);
  blank[i] = false;
}
function load(i, address, name) {
  return new Promise(done => {
    const image = new Image();
    image.onload = () => { paint(i, image); done(); };
    image.onerror = () => {
      wrong.textContent = name + ' is not an image that this browser can read: choose a PNG or a JPEG';
      done();
    };
    image.src = address;
  });
}
async function show(value) {
  if (value === sent) return;
  sent = value;
  const given = value ? JSON.parse(value) : [];
  await Promise.all(canvases.map((_, i) => given[i] ? load(i, given[i], 'the drawing') : clear(i)));
}
canvases.forEach((canvas, i) => {
  clear(i);
  let last = null, timer = null;
  const place = e => {
    const box = canvas.getBoundingClientRect();
    return [(e.clientX - box.left) / box.width * 105, (e.clientY - box.top) / box.height * 105];
  };
  const line = (from, to) => {
    const pen = canvas.getContext('2d');
    pen.strokeStyle = '#000'; pen.lineWidth = 3; pen.lineCap = 'round'; pen.lineJoin = 'round';
    pen.beginPath(); pen.moveTo(...from); pen.lineTo(to[0] + 0.01, to[1]); pen.stroke();
    blank[i] = false;
  };
  canvas.addEventListener('pointerdown', e => {
    canvas.setPointerCapture(e.pointerId);
    last = place(e); line(last, last);
    // While the pen moves the answer follows it.
    timer = setInterval(tell, 400);
    e.preventDefault();
  });
  canvas.addEventListener('pointermove', e => {
    if (!last) return;
    const now = place(e); line(last, now); last = now;
  });
  const end = () => { if (last) { last = null; clearInterval(timer); tell(); } };
  canvas.addEventListener('pointerup', end);
  canvas.addEventListener('pointercancel', end);
});
element.querySelectorAll('.clear').forEach((button, i) => button.addEventListener('click', () => {
  clear(i); wrong.textContent = ''; tell();
}));
element.querySelectorAll('input[type=file]').forEach((input, i) => input.addEventListener('change', async () => {
  const file = input.files[0];
  wrong.textContent = '';
  if (!file) return;
  if (file.size > 20 * 1024 * 1024) {
    wrong.textContent = file.name + ' is larger than 20 MB: make it smaller';
  } else {
    const address = URL.createObjectURL(file);
    await load(i, address, file.name);
    URL.revokeObjectURL(address);
    tell();
  }
  input.value = '';
}));
show(props.value);
watch('value', () => show(props.value));
