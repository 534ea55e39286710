// Map the PSF of the open image, and restore it if wanted: docs/fiji.md tells how to install this.
//
// Without an argument, a dialog asks for the optics. With one, no dialog opens, for batch and loops:
//
//     runMacro("/path/to/Estimate_PSF_Map.ijm", "image=[/data/my cells.tif] na=0.45 wavelength=0.5")
//
// Keys: project (its folder), python (the program), image (default: the open image), out (folder of
// the results), network, na, wavelength, pixel (both um), index, restore (yes or no), map_options and
// restore_options (further options of the scripts), dry (yes: print the commands, run nothing).
// A value with blanks stands in [ ]. Numbers that are left out are read from the image.

var VIRIDIS = newArray(68, 1, 84, 72, 40, 120, 62, 74, 137, 49, 104, 142, 38, 130, 142, 31, 158, 137,
    53, 183, 121, 109, 205, 89, 180, 222, 44, 253, 231, 37); // 10 colours of the map of the overview
var KEYS = newArray("network", "na", "wavelength", "index", "map_options", "restore_options");
var SCRIPT = "estimate_psf_map.py"; // tells the folder of the project
var options = getArgument();
var project, python, image, out, network, na, wavelength, pixel, index;
var restore, map_options, restore_options, dry;

main();

function main() {
    dry = key("dry", "no");
    path = key("image", "");
    if (path != "") open(path);
    if (nImages == 0) fail("no image is open; open the image to map, then run this macro again.");
    find_project();
    read_settings();
    if (options == "") ask_settings();
    check_numbers();
    title = getTitle();
    image = plane_of_image();
    of_map = words(map_options);
    of_restoration = words(restore_options);
    known = optics();
    run_script(SCRIPT, image + known + of_map + "\t--checkpoint\t" + network + "\t--out\t" + out + "map");
    if (restore) run_script("deconvolve.py", image + "\t--map\t" + out + "map"
        + of_restoration + "\t--out\t" + out + "restored");
    if (dry == "yes") return;
    open(out + "map" + File.separator + "overview.png");
    open_map(out + "map" + File.separator + "psf_map.tif");
    open_map(out + "map" + File.separator + "depth.tif");
    if (restore) open_restored(title);
    print("The results are in " + out);
}

// --- settings

// The value of a key in the argument; [ ] around it may hold blanks.
function key(name, otherwise) {
    text = " " + options + " ";
    start = indexOf(text, " " + name + "=");
    if (start < 0) return otherwise;
    start = start + lengthOf(name) + 2;
    if (substring(text, start, start + 1) == "[")
        return substring(text, start + 1, indexOf(text, "]", start));
    return substring(text, start, indexOf(text, " ", start));
}

function remembered(name, otherwise) {
    return call("ij.Prefs.get", "psf_map." + name, otherwise);
}

function remember(name, value) {
    call("ij.Prefs.set", "psf_map." + name, value);
}

// The folder of the project and the Python program: from the argument, the last time, or asked for.
function find_project() {
    last = remembered("project", "");
    last = key("project", last);
    project = folder(last);
    path = "" + getInfo("macro.filepath");
    end = lastIndexOf(path, "fiji" + File.separator + "Estimate_PSF_Map.ijm");
    if (!File.isDirectory(project) && end > 0) project = substring(path, 0, end);
    last = remembered("python", "");
    python = key("python", last);
    given = key("python", "");
    if (given == "" && !File.exists(python)) python = python_of_project();
    if (options == "" && !(File.exists(project + SCRIPT) && File.exists(python))) ask_project();
    if (!File.exists(project + SCRIPT)) fail("the folder of the project has no " + SCRIPT + ": " + project);
    if (!File.exists(python)) fail("there is no Python program at '" + python + "'.");
}

function ask_project() {
    if (!File.exists(project + SCRIPT)) project = "";
    usual = newArray("/usr/local/bin/python3", "/opt/homebrew/bin/python3", "/usr/bin/python3");
    for (i = 0; i < usual.length; i++)
        if (!File.exists(python) && File.exists(usual[i])) python = usual[i];
    if (!File.exists(python)) python = "";
    Dialog.create("PSF map: the first time");
    Dialog.addMessage("Choose the folder with estimate_psf_map.py, and the program of Python 3.11 or newer\n"
        + "(for example /usr/bin/python3, or python.exe in the folder where you installed Python).");
    Dialog.addDirectory("Folder of the project", project);
    Dialog.addFile("Python program", python);
    Dialog.show();
    project = folder(Dialog.getString());
    python = Dialog.getString();
    if (!File.exists(project + SCRIPT) || !File.exists(python)) return;
    code = execute("-c\timport imagecodecs, matplotlib, safetensors, skimage, torch, tyro", false);
    if (code != 0) install_packages();
    remember("project", project);
    remember("python", python);
}

function python_of_project() {
    unix = project + ".venv/bin/python";
    windows = project + ".venv\\Scripts\\python.exe";
    if (File.exists(windows)) return windows;
    return unix;
}

function install_packages() {
    if (!getBoolean("This Python lacks packages that the project needs.\nInstall them into "
        + project + ".venv now?\nThis downloads up to 3 GB and takes some minutes."))
        fail("packages are missing; in a terminal: pip install -r requirements.txt");
    must_work("-m\tvenv\t" + project + ".venv");
    python = python_of_project();
    must_work("-m\tpip\tinstall\t-r\t" + project + "requirements.txt");
}

function read_settings() {
    network = key("network", "focus");
    na = key("na", "");
    wavelength = key("wavelength", "");
    index = key("index", "");
    stated = pixel_um();
    pixel = key("pixel", stated);
    wanted = key("restore", "no");
    restore = matches(wanted, "yes");
    map_options = key("map_options", "");
    restore_options = key("restore_options", "");
    beside = default_out();
    out = key("out", beside);
}

function ask_settings() {
    Dialog.create("PSF map");
    defaults = newArray("focus", "", "", "", "", "");
    for (i = 0; i < KEYS.length; i++) defaults[i] = remembered(KEYS[i], defaults[i]);
    restored_last = remembered("restore", "0");
    unit = unit_of_image();
    names = networks();
    text = help();
    Dialog.addChoice("Network", names, defaults[0]);
    Dialog.addString("NA of the objective", defaults[1], 8);
    Dialog.addString("Emission wavelength (um)", defaults[2], 8);
    Dialog.addString("Refractive index (1.0 air, 1.33 water, 1.52 oil)", defaults[3], 8);
    Dialog.addString("Pixel size (um)", pixel, 8);
    if (pixel == "") Dialog.addMessage("The image has no pixel size in um (unit: " + unit
        + ").\nGive camera pixel / magnification.");
    Dialog.addCheckbox("Restore the image, too (takes longer)", parseInt(restored_last));
    Dialog.addDirectory("Folder of the results", out);
    Dialog.addString("More options of the map", defaults[4], 24);
    Dialog.addString("More options of the restoration", defaults[5], 24);
    Dialog.addCheckbox("Choose the project and Python again", false);
    Dialog.addHelp(text);
    Dialog.show();
    network = Dialog.getChoice();
    na = Dialog.getString();
    wavelength = Dialog.getString();
    index = Dialog.getString();
    pixel = Dialog.getString();
    restore = Dialog.getCheckbox();
    out = Dialog.getString();
    map_options = Dialog.getString();
    restore_options = Dialog.getString();
    values = newArray(network, na, wavelength, index, map_options, restore_options);
    for (i = 0; i < KEYS.length; i++) remember(KEYS[i], values[i]);
    remember("restore", d2s(restore, 0));
    if (Dialog.getCheckbox()) ask_project();
}

function help() {
    return "<html><h3>Which network?</h3><table>"
        + "<tr><td>focus</td><td>widefield, no special optics</td></tr>"
        + "<tr><td>astigmatic_tilted</td><td>with a cylindrical lens: depth with its sign</td></tr>"
        + "<tr><td>zernike2d_tilted</td><td>widefield, with unknown astigmatism</td></tr>"
        + "<tr><td>gaussian1d, gaussian2d</td><td>unknown optics: needs the pixel size alone</td></tr>"
        + "</table><p>The plane on the screen is mapped, all of it. Press Esc to stop.</p>"
        + "<p>README.md and docs/fiji.md of the project tell more.</p></html>";
}

// Shipped networks; the advised one comes first.
function networks() {
    found = newArray("focus");
    names = getFileList(project + "checkpoints");
    for (i = 0; i < names.length; i++) {
        name = replace(replace(names[i], "/", ""), "\\\\", "");
        if (name != "focus" && File.exists(project + "checkpoints/" + name + "/model.safetensors"))
            found = Array.concat(found, name);
    }
    return found;
}

// Numbers may have a decimal comma.
function check_numbers() {
    na = number("NA", na);
    wavelength = number("wavelength", wavelength);
    pixel = number("pixel size", pixel);
    index = number("refractive index", index);
    if (wavelength != "" && parseFloat(wavelength) > 100)
        fail("the wavelength is " + wavelength + "; give it in um (500 nm is 0.5).");
    out = folder(out);
}

function number(name, text) {
    text = replace(String.trim(text), ",", ".");
    if (text == "" || (name == "NA" && text == "auto")) return text;
    if (isNaN(parseFloat(text))) fail("the " + name + " is '" + text + "'; give a number, e.g. 0.5");
    return text;
}

// --- the image

function unit_of_image() {
    getPixelSize(unit, width, height);
    return unit;
}

// Pixel size in um as text; empty if the image states none. Inches and cm are those of a printer.
function pixel_um() {
    getPixelSize(unit, width, height);
    micro = newArray(fromCharCode(181) + "m", fromCharCode(956) + "m", "um", "micron", "microns",
        "micrometer", "micrometers");
    factor = 0;
    for (i = 0; i < micro.length; i++) if (unit == micro[i]) factor = 1;
    if (unit == "nm" || unit == "nanometer" || unit == "nanometers") factor = 0.001;
    if (unit == "mm" || unit == "millimeter" || unit == "millimeters") factor = 1000;
    if (factor == 0) return "";
    if (abs(width / height - 1) > 0.01) print("note: the pixels are not square; the width is used");
    text = d2s(width * factor, 6);
    while (endsWith(text, "0")) text = substring(text, 0, lengthOf(text) - 1);
    return text;
}

// Folder beside the file of the image, or in the home folder for an image without a file.
function default_out() {
    directory = getInfo("image.directory");
    if (directory == "" || !File.isDirectory(directory)) directory = getDirectory("home");
    directory = folder(directory);
    name = replace(getTitle(), "[\\\\/:*?\"<>|\t]", "_");
    if (indexOf(name, ".") > 0) name = substring(name, 0, lastIndexOf(name, "."));
    return directory + name + "_psf";
}

// Arguments that name the plane on the screen, each with a tab before it: the file of the image, if
// it is an ImageJ TIFF that nobody changed, else a copy of the plane.
function plane_of_image() {
    make_folder(out);
    path = getInfo("image.directory") + getInfo("image.filename");
    whole = is_file_of_image(path);
    if (!whole) {
        copy_plane();
        return "\t" + out + "image.tif";
    }
    Stack.getDimensions(width, height, channels, slices, frames);
    Stack.getPosition(channel, slice, frame);
    arguments = "\t" + path;
    if (channels > 1) arguments = arguments + "\t--channel\t" + d2s(channel - 1, 0);
    if (slices > 1) arguments = arguments + "\t--z\t" + d2s(slice - 1, 0);
    if (frames > 1) arguments = arguments + "\t--t\t" + d2s(frame - 1, 0);
    return arguments;
}

// Whether a file holds the image as it is: its planes are counted as in the image, and nothing
// changed. Other programs count planes differently, so their files are never taken.
function is_file_of_image(path) {
    if (getInfo("image.filename") == "" || !File.exists(path)) return false;
    if (is("changes") || is("Inverting LUT")) return false;
    header = File.openAsRawString(path, 4000);
    if (indexOf(header, "ImageJ=") < 0) return false;
    Stack.getDimensions(width, height, channels, slices, frames);
    names = newArray("images", "channels", "slices", "frames");
    sizes = newArray(channels * slices * frames, channels, slices, frames);
    for (i = 0; i < names.length; i++) {
        stated = count(header, names[i]);
        if (stated != sizes[i]) return false;
    }
    return true;
}

// A number in the description of an ImageJ TIFF; what is missing there is 1.
function count(header, name) {
    start = indexOf(header, "\n" + name + "=");
    if (start < 0) return 1;
    start = start + lengthOf(name) + 2;
    end = indexOf(header, "\n", start);
    if (end < 0) return 1;
    return parseInt(substring(header, start, end));
}

// Save the plane on the screen with its scale; the image, its name and its selection stay.
function copy_plane() {
    id = getImageID();
    selected = selectionType() >= 0;
    if (selected) run("Select None");
    Stack.getPosition(channel, slice, frame);
    place = "";
    // Without its numbers, a composite image would be duplicated with all its channels.
    if (Stack.isHyperstack) place = " duplicate channels=" + channel + " slices=" + slice
        + " frames=" + frame;
    run("Duplicate...", "title=plane" + place);
    if (bitDepth() != 24) run("Grays"); // an inverted LUT would be saved as inverted pixels
    saveAs("Tiff", out + "image.tif");
    close();
    selectImage(id);
    if (selected) run("Restore Selection");
}

// --- the scripts

function optics() {
    text = "";
    if (na != "") text = text + "\t--na\t" + na;
    if (wavelength != "") text = text + "\t--wavelength-um\t" + wavelength;
    if (pixel != "") text = text + "\t--pixel-size-um\t" + pixel;
    if (index != "") text = text + "\t--refractive-index\t" + index;
    return text;
}

// Options as typed, with tabs for blanks.
function words(text) {
    text = String.trim(text);
    if (text == "") return "";
    return "\t" + replace(text, " +", "\t");
}

// Run a script with arguments, each with a tab before it; if it fails, its error is shown and the macro ends.
function run_script(script, arguments) {
    if (dry == "yes") {
        print("python " + script + replace(arguments, "\t", " | "));
        return;
    }
    print("--- " + script);
    must_work(project + script + arguments);
}

function must_work(arguments) {
    code = execute(arguments, true);
    if (code == 0) {
        clear_talk();
        return;
    }
    message = last_message();
    fail(message);
}

// Exit code of Python with arguments between tabs. Its messages appear in the Log as they come.
function execute(arguments, shown) {
    talk = talk_folder();
    File.saveString("0", talk + "waiting.txt");
    setOption("WaitForCompletion", false);
    // One argument holds all: exec takes no array, and neither standard error nor the exit code
    // comes back from it.
    said = "" + exec(python, project + "fiji" + File.separator + "run.py", talk, arguments);
    printed = 0;
    for (i = 1; !File.exists(talk + "exit_code.txt"); i++) {
        wait(250);
        File.saveString(d2s(i, 0), talk + "waiting.txt");
        printed = print_new(talk, printed, shown);
        showStatus("PSF map: Python is working, Esc stops it");
        if (printed == 0 && i > 240 && !File.exists(talk + "messages.raw"))
            fail("Python did not start: " + python + " " + said);
    }
    print_new(talk, printed, shown);
    return parseInt(File.openAsString(talk + "exit_code.txt"));
}

// Empty folder in which the macro and run.py leave files for each other.
function talk_folder() {
    talk = getDirectory("temp") + "psf_map_" + d2s(getTime(), 0);
    File.makeDirectory(talk);
    call("ij.Prefs.set", "psf_map.talk", talk + File.separator);
    return talk + File.separator;
}

function clear_talk() {
    talk = remembered("talk", "");
    names = newArray("waiting.txt", "messages.txt", "exit_code.txt", "");
    for (i = 0; i < names.length; i++) done = File.delete(talk + names[i]);
}

// Print the messages from number `printed` on; how many there are now.
function print_new(talk, printed, shown) {
    if (!File.exists(talk + "messages.txt")) return printed;
    lines = split(File.openAsString(talk + "messages.txt"), "\n");
    for (i = printed; i < lines.length; i++) if (shown) print(lines[i]);
    return lines.length;
}

// The error of the last script, or else the last line that it wrote.
function last_message() {
    talk = remembered("talk", "");
    lines = split(File.openAsString(talk + "messages.txt"), "\n");
    for (i = 0; i < lines.length; i++)
        if (startsWith(lines[i], "error: ")) return substring(lines[i], 7);
    if (lines.length == 0) return "Python stopped without a message.";
    return lines[lines.length - 1];
}

// End with a message: in a dialog, or in the Log where dialogs would stop a loop.
function fail(message) {
    if (options == "") exit("error: " + message);
    print("error: " + message);
    exit;
}

// --- the results

// Open a map: colours from its smallest to its largest value, enlarged to about 500 pixels.
function open_map(path) {
    if (!File.exists(path)) return;
    open(path);
    Stack.getDimensions(width, height, channels, slices, frames);
    for (channel = 1; channel <= channels; channel++) {
        if (channels > 1) Stack.setChannel(channel);
        viridis();
        resetMinAndMax();
    }
    if (channels > 1) Stack.setChannel(1);
    zoom = floor(500 / maxOf(width, height));
    if (zoom > 1) run("Set... ", "zoom=" + d2s(100 * zoom, 0));
    setOption("Changes", false);
}

function open_restored(title) {
    open(out + "restored" + File.separator + "restored.tif");
    rename("restored " + title);
    run("Grays");
    run("Enhance Contrast", "saturated=0.35");
    setOption("Changes", false);
}

function viridis() {
    reds = newArray(256);
    greens = newArray(256);
    blues = newArray(256);
    for (i = 0; i < 256; i++) {
        at = i * 9 / 255;
        k = minOf(floor(at), 8);
        share = at - k;
        reds[i] = (1 - share) * VIRIDIS[3 * k] + share * VIRIDIS[3 * k + 3];
        greens[i] = (1 - share) * VIRIDIS[3 * k + 1] + share * VIRIDIS[3 * k + 4];
        blues[i] = (1 - share) * VIRIDIS[3 * k + 2] + share * VIRIDIS[3 * k + 5];
    }
    setLut(reds, greens, blues);
}

// --- folders

// A path with a separator at its end; no path stays none.
function folder(path) {
    if (path == "" || endsWith(path, "/") || endsWith(path, "\\")) return path;
    return path + File.separator;
}

// Make a folder, whose name ends with a separator, and those above it.
function make_folder(path) {
    if (File.isDirectory(path)) return;
    end = lastIndexOf(substring(path, 0, lengthOf(path) - 1), File.separator);
    if (end > 0) make_folder(substring(path, 0, end + 1));
    File.makeDirectory(path);
    if (!File.isDirectory(path)) fail("the folder cannot be made: " + path);
}
